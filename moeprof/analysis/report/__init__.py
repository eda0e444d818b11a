"""What pages say, as documents without a look."""
