"""Step runs in MLflow: `runs` (outputs and lineage), `cache` (reuse), `artifacts` (reading by URI), `digests` and `paths`."""
