"""Steps on other machines: Databricks and Azure ML jobs, and which step goes where."""
