"""From a candidate to a version in a model repository: export, verify, write, publish.

Start with `publish.publish_candidate`.
"""
