"""Results for others: offline W&B runs sent later, dashboards as code, models and data sets on the Hugging Face hub."""
