"""What stands in front of a network in the served graph and has no form in torch: texts. Start with `columns_front`."""
