"""How a Document looks: terminal, markdown, html, json, csv."""
