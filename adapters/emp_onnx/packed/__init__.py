"""The packed form: only what is not zero is stored, and a function in the file itself says how it is unpacked."""
