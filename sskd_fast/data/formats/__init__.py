"""Annotation formats: each is read into a COCO instances dict, and some are written from one."""
