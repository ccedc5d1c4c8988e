"""What host and sandbox share: messages, framing, and how values are presented.

Standard library only, Python >= 3.9: these modules are also shipped into sandboxes.
"""
