"""The built-in tasks of nlp_distill, registered through entry points as any third party's would be."""
