"""What tools/write_docs.py and tools/draw_network.py write: a file for each kind of content."""
