"""What runs inside the image under test. Nothing here imports anything of ours: it is mounted, not
installed.
"""
