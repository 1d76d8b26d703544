"""The user's own data, without code: a folder of pictures, a table, arrays, lines of text."""
