"""Annotation formats: all are read into a COCO instances dict, and some are written from one."""
