"""Where a quantized file is meant to run.

A target is a file of rules in ``targets/rules/``: opsets, widths, types and forms that a runtime takes. It is read here, checked
word by word, and asked by the rooms above; docs/deployment.md says where each rule comes from.
"""
