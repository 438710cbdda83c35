"""Step runs in MLflow: `runs`, `lineage` (tags, outputs), `cache` (reuse), `unfinished` (killed runs), `artifacts` (by URI)."""
