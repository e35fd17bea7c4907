"""plugins of other trainers, each in a file that is imported by that trainer alone"""
