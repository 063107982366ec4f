"""The network: trunk and heads, their weights in the files people have, and features of images."""
