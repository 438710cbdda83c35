"""Deploy a registered classifier. There is one module per target, with the functions deploy, release, status and delete."""
