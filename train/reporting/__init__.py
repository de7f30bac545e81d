"""`folio report`: one HTML page that shows one or several runs."""
