"""Figures, tables and HTML pages about runs. They read nothing but run folders."""
