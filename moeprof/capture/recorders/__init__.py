"""Recorders listen to the replay and append to the record; they compute no statistics and print nothing."""
