"""What is used: parameters, memory, bytes and FLOPs, energy, the state of the device."""
