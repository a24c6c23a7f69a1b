"""What differs from the defaults of the configuration dataclasses: one YAML file a run."""
