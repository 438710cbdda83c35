"""Steps on other machines: jobs of Azure ML and Databricks, and the placement of steps."""
