"""What the machine is and says of itself: choice, NVML, RAPL, meters, peaks, environment."""
