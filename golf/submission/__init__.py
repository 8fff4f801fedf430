"""From a finished run to a record folder: one file of the code it used, packed, checked and written down."""
