"""What is measured once a launch, beside the replay."""
