"""Keys, signatures, ciphers and the handshake: bytes in, bytes out. The only folder that imports nacl."""
