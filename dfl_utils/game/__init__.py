"""The two loops, image to text to image and text to image to text, their drawings and readings, the judges of their
candidates, and what the store keeps of all that. Nothing is trained here.
"""
