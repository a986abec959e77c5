"""What the kinds of jobs do to the images of one unit."""
