"""`p2pfl doctor`: tests every link, and says what is to be mended."""
