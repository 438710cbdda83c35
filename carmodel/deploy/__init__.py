"""Targets that a registered classifier can be deployed to. Each target module has deploy, release, status and delete."""
