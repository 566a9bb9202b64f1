"""Tables, figures and the page that leave the institution."""
