"""The network: trunk and heads, reading weights from common file formats, and features of images."""
