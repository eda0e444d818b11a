"""What later runs are judged against: the noun, its file, its text and where it is kept."""
