"""Every course in every setting that there is: one table of courses, and where and through what they are played."""
