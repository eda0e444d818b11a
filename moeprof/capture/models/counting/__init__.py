"""How a model is counted of which only a config is there: keys without effect, other formats, bytes as stored."""
