"""One experiment in YAML: models, traffic, engine, studies and gates, read strictly."""
