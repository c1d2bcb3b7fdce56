"""What a run or a sweep leaves behind: its folder, its pictures, its place in a grid."""
