def interface(name, file, derivatives):
    return ""
