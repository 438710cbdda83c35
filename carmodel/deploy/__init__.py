"""Deploy a registered classifier. Each kind of target has a module with the functions deploy, release, status and delete."""
