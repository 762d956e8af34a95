package e2e


func (b *bench) judge()                     {}
func (r *record) charts() map[string]string { return nil }
