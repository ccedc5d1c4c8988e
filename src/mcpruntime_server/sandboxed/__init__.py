"""What is shipped into a sandbox as source. The host never imports it.

Standard library only, Python >= 3.9.
"""
