"""Stage `report`: tables, figures and one page that is read without the code."""
