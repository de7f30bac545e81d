"""`preprocess report`: one HTML page that shows what is in a build."""
