"""One model shared by several processes (ranks): start-up, loading, the same steps everywhere, what ranks agree on."""
