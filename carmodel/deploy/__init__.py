"""Where a registered classifier can be deployed: a file a target, each with `deploy`, `status` and `delete`."""
