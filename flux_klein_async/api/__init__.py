"""What the service says: values in, values out.

- `requests`: builds each call; gives the token to those of the API alone
- `responses`: reads each answer (which word means which state: `models`); `outputs`: the files that a result names
- `urls`: which addresses and hosts are trusted
- `credentials`: finds the token (its variables: `options`), and hides it
- `messages`: requests and responses, as `transport` carries them
"""
