"""The architecture zoo: stock networks under their field names."""
