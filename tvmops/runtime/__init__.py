"""The use half: load an exported library and call it. Never imports the compiler."""
