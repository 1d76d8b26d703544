"""What an export starts from: the module behind one calling convention, its inputs, outputs and examples.

Start with `candidate.Candidate`. `served_module` adapts a user's module; `module_copy` copies it.
"""
