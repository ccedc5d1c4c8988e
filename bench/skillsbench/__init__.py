"""Tasks in the layout of SkillsBench (Harbor), done with and without skills."""
